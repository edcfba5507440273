"""What setup.cfg cannot say: two folders are packages of the wheel under names of their own.

detectron2's wheel installs a package ``tools``, so ours must not be one.
"""

from setuptools import find_packages, setup

ROOMS = (
    "backbones", "det_configs", "detection", "fcmae", "images", "reporting", "segmentation",
    "training",
)  # fmt: skip
FOLDERS = {"fcmae_commands": "tools", "fcmae_ablations": "ablations"}

setup(
    packages=[*find_packages(include=[f"{room}*" for room in ROOMS]), *FOLDERS],
    package_dir=FOLDERS,
)

"""``python -m fcmae``: the console command, also for launchers such as torchrun."""

from training.console import main

if __name__ == "__main__":
    raise SystemExit(main())

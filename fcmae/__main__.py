"""``python -m fcmae``: the console command, also for launchers such as torchrun."""

from training.command_line.console import main

if __name__ == "__main__":
    raise SystemExit(main())

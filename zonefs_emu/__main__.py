"""``python -m zonefs_emu``."""

from zonefs_emu.cli.main import main

if __name__ == "__main__":
    main()

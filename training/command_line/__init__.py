"""The console command, its subcommands, and how they start processes and jobs."""

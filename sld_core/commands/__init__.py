"""The subcommands of `sld`, one file each: `add(commands)` declares it. Only these, benchmarks and
progress bars print."""

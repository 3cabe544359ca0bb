"""What reads files of strangers, fed with files that were damaged on purpose. See `python -m fuzz.run --help`."""

"""The mount: gate, names and control files. Translates, never decides."""

"""The commands of `llava-prep`: one a file, each only a door to the code that does the work."""

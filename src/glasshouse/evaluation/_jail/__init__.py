"""The inside of the sandbox: standard library only, loaded by a bare interpreter (`python -I -S`)."""

"""The command line: it parses, calls one function and shows what that returned."""

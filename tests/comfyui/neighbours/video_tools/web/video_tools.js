// A stand-in for a page script.

"""Make a library fit to be embedded in a wheel, from any OS: its names, paths and signature."""

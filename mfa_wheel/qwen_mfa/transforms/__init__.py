"""What stands between a call and a kernel: derivatives, tracing, padding."""

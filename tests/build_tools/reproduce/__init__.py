"""Tests of wheels as files: nothing here needs MLX."""

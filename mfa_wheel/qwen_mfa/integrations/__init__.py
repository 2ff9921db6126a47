"""Integrations with programs that call MLX's attention; each explicit, reversible, guarded."""

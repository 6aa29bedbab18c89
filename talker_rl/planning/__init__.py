"""What a run will cost before it starts: counted FLOPs and bytes, times measured or assumed rates."""

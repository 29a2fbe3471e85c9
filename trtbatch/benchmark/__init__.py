"""What ``bench`` and ``tune`` time with: loops, their stop, the GPU's clocks, two engines in turns."""

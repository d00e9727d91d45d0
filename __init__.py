"""CoSpec: collaborative speculative decoding on edge devices."""

"""RingNet on fused FLAME operators."""

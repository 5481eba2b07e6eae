"""The pocket model: a procedural renderer of talking portraits, and small networks trained on these portraits.

The networks have HunyuanVideo's architecture and run on a CPU. The example workflow uses them.
"""

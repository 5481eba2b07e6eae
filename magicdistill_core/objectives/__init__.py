"""The training losses as pure functions of tensors and callables: no optimizer, no engine, no files.

MD: MagicDistillation (arXiv 2503.13319). M141: Magic 1-For-1 (arXiv 2502.07701). Shapes: B is the batch; `[B, ...]` is
a batch of latents `[B, 16, T, H, W]`. `sigma` is the noise level in [0, 1]. A *velocity* is a callable `(x, sigma [B])
-> v`, shaped as x (`flow.Velocity`): a network with its conditioning.

The four roles: the *teacher* is the frozen many-step model. The *generator* is the few-step model in training. The
*real score* and the *fake score* (the papers' words) are the velocities of two networks: one that knows the data, and
one that is trained on the generator's samples. Their difference trains the generator.
"""

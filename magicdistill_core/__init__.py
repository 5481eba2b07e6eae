"""The core that the ComfyUI nodes and the trainer share: flow sampling, model files, losses and media.

Words of this project:

- A *teacher* is a many-step model. A *generator* is the few-step model distilled from it.
- A *recipe* is the part of a model file's metadata that states how to sample from it (`recipe.Recipe`).
- A *null prompt* is the text conditioning for image-to-video without a prompt. It is stored in the model file
  (`families.base.NullPrompt`).
- A *branch* is a LoRA on the frozen teacher. Its weight turns the teacher into the real or the fake score (`branch`).
- The *file layout* has the tensor names of single model files, the *diffusers layout* those of diffusers
  (`layouts.modules`).
- A *family* is an architecture with one way in which the start image enters it (`families.base.Family`).
"""

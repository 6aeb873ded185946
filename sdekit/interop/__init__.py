"""sdekit inside other projects: their samplers' interfaces, with its methods behind.

Nothing here is imported by sdekit itself: ``sdekit.interop.diffusers`` needs diffusers installed,
``sdekit.interop.k_diffusion`` nothing.
"""

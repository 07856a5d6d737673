"""From a patch model to a large image: windows, the embedding grid, consensus, decoding.

Takes any denoiser. Positions are latent pixels of the canvas unless a name says `_px`.
"""

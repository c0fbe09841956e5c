"""
The how-to guides, done to the letter: their blocks become files of a project, which runs, and clients see what it says.

`docs/howto/index.rst` has the project that the guides share; each guide adds its own files to it.
"""

"""xdyna: animate a picture of a person with the motion and the expression of a driving video.

Importing the package loads nothing heavy; import the parts you need, e.g. ``xdyna.pipelines.xdyna``.
"""

__version__ = "0.1.0.dev0"

"""The page: `xdyna page`. Visitors animate an image with a video, or move a puppet live; programs do so over HTTP.

    uploads.py   what a visitor sends is checked and copied under names of our own
    jobs.py      the bounded queue: progress, cancelling, what is kept and for how long
    studio.py    jobs that animate, and the look at both files before
    rooms.py     live animations, fed and emptied by requests
    guard.py     what of HTTP is let in
    view.py, live_view.py, server.py   the page itself (Gradio)

Only view.py, live_view.py and server.py know Gradio.
"""

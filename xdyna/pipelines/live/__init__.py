"""Live animation: frames or keypoints come in, frames go out, window by window.

    source (thread)        camera, file at its own speed, keypoints as JSON lines        sources.py
    -> Backlog             waits for a window, drops what cannot be in time              backlog.py
    -> LiveControls        follows, aligns, draws pose maps and face patches             controls.py
    -> WindowDenoiser      denoises new frames beside held ones, decodes                 window.py
    -> sink                file, folder, raw bytes, callback                             sinks.py

`session.py` puts them together, `loop.py` runs them side by side, `rehearsal.py` measures how many threads help.
"""

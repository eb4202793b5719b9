"""Sentences of the programs in the words of the page: it has labels where these have options."""

import re

FIT = "Fit the person in the video to the one in the image"
FORCE = "Animate even where they do not fit"
CROP = "What is kept of the image"
CROPS = {
    "published": "as the model was trained",
    "person": "around the person",
    "none": "all of it",
}
"""Values of `crop`."""

# In this order: what the page has no label for goes with the half sentence that it stands in.
_SAID = (
    (r"--force goes on all the same, --preview FILE\.png draws.*", f"“{FORCE}” goes on all the same"),
    (r",? or (give the person's keypoints with --ref-keypoints|a --size (of its aspect|whose aspect is [a-z ]+))", ""),
    (r" \((--align|--fps)\)|, or run without face control \(--no-face\)", ""),
    (r"leave out --align, or give --force", f"leave out “{FIT}”, or choose “{FORCE}”"),
    (r"(give|leave out) --align", rf"\1 “{FIT}”"),
    (r"choose --person 0 to (\d+)", r"choose a person from 0 to \1 under “More”"),
    (r"(?m),?( or)? (keypoints \(\.npz\)|give keypoints \(\.npz\) or a pose video \(--drive-kind pose\))$", ""),
    (r"crop=(\w+)", lambda found: f"“{CROP}: {CROPS.get(found[1], found[1])}”"),
)  # fmt: skip


def for_visitors(text: str) -> str:
    """A sentence with the page's labels in place of options.

    Args:
        text: as programs say it.

    Returns:
        The same where it names no option that the page has another word for.
    """
    for option, label in _SAID:
        text = re.sub(option, label, text)
    return text

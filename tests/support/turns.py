"""How the two threads of a listener take turns at its loop: see `RelievedLoop`. Tests force what is rare otherwise."""

from __future__ import annotations

import math

from finx_streamer.connection.relief import ReliefTiming

#: Looks that follow each other at once.
_OFTEN = 0.0001

TURNS = {
    #: However long a callback takes.
    "never relieved": ReliefTiming(grace=1_000_000.0),
    #: From the first callback on, as if a thread of its own ran callbacks.
    "always relieved": ReliefTiming(
        grace=0.0, careful_look=_OFTEN, short_look=_OFTEN, long_look=_OFTEN, holds=(math.inf,)
    ),
    #: The relief takes over in most callbacks, at any moment, and hands back as soon as the callback thread waits.
    "changing hands": ReliefTiming(grace=0.0, careful_look=_OFTEN, short_look=_OFTEN, long_look=_OFTEN, holds=(0.0,)),
}

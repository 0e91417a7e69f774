"""A text that no network was trained on: it was written for this workbook. Perplexities are measured on it."""

from __future__ import annotations

LIGHTHOUSE = """\
The lighthouse on the northern cape has not had a keeper for thirty years. A small computer turns the lamp on when \
the sun goes down, counts the turns of the lens, and sends a message to the harbor office once an hour. For a long \
time nobody thought about that computer at all. It sat in a gray box behind the stairs, and the only person who \
ever opened the box was the electrician who came in spring to clean the contacts.

Last winter the harbor office asked for more. Ships now carry cameras, and the office wanted the lighthouse to \
look at the water as well, so that it could warn a fishing boat that had drifted too close to the rocks. The \
engineers took a network that had learned to find boats in pictures and tried to run it on the old computer. It \
needed eleven seconds for one picture. In eleven seconds a boat can travel a long way.

They did not buy a larger computer, because the power line to the cape is thin and the wind turbine stands still \
in summer. Instead they asked where the eleven seconds went. Most of the time, they found, the processor was not \
calculating. It was waiting for numbers to arrive from memory, and many of these numbers were never used. They \
removed every third channel, stored the weights in eight bits, and joined the steps that touched the same data. \
After each change they compared the answers with those of the first network, on two hundred pictures that the \
electrician had taken on his way up the stairs.

One change made the program faster and the answers worse, and they took it back. Another made no difference that \
they could measure, and they took that back as well, because a change that nobody can measure is only one more \
thing to explain. In the end a picture took less than half a second. The lamp still turns on when the sun goes \
down. Somebody has painted a small boat on the gray box, and under it the date on which the computer saw its first \
real one, a blue trawler with its engine off, turning slowly in the fog."""

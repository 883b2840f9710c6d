"""Every limit on the work that a foreign file may cause, in one place.

The time for a dictionary or a set depends on its keys: keys chosen along CPython's probe sequence make n insertions
take n² steps. Strings and bytes cannot be chosen in this way, because Python hashes them with a random secret of each
process (unless the environment sets `PYTHONHASHSEED`). Integers that count 0, 1, 2, … in the order of insertion do not
collide. The number of all other keys of one file is limited to `SCATTERED_KEYS`, so that they take at most
`SCATTERED_KEYS`² / 2 steps, about a second.
"""

MIB = 1 << 20

# Pickles

INSTRUCTIONS = 1_000_000
"""Instructions of one file; a whole network has about 150 per layer."""

PICKLE_LIMIT = 64 * MIB
"""Bytes of all content except tensors; a whole VGG16 has 20,000."""

SCATTERED_KEYS = 10_000
"""Keys of dictionaries and members of sets in one file, without strings and without numbers in the order 0, 1, 2, …"""

NAME = 200
"""Characters of the name of a class or function."""

LONG = 64
"""Bytes of an integer."""

# Archives

MEMBERS = 100_000
"""Members of a zip archive."""

SAFETENSORS_HEADER = 16 * MIB
"""Bytes of the header of a safetensors file; a tensor takes about 100."""

# Tensors

DIMENSIONS = 64
"""Dimensions of a tensor."""

OVERLAP = MIB
"""Elements that a tensor may have beyond those of its storage (a view with stride 0, for example), and that all tensors
of a network may have together beyond `NETWORK_VIEWS`."""

VIEWS = 8
"""The bytes of all tensors of a file, each counted as if it had separate memory, may be this many times the bytes of
their storages: tied weights and an exponential moving average share storages, and so do a few views."""

PRETRAINED = 1 << 30
"""Bytes that the tensors of a state dict may have beyond their storages if they are only copied into a network of
known size: VGG16, the largest one, has 553 MB."""

NETWORK_VIEWS = 2
"""The same for the elements of a network that is to be run: a conversion of the dtype or a move to a GPU gives each of
its tensors separate memory."""

# Networks

ENTRIES = 100_000
"""Modules and tensors of a network, each counted wherever it appears; entries of a state dict; classes."""

WORKING_LAYERS = 20_000
"""Layers of a rebuilt network; building a layer takes up to half a millisecond."""

DEPTH = 64
"""Depth of nested modules."""

LEVELS = 16
"""Depth of nested containers in which networks and state dicts are searched for."""

CANDIDATES = 100
"""Networks and state dicts in one file."""

WORD = 100
"""Characters of a module's or tensor's own name."""

KEY_LENGTH = 500
"""Characters of a tensor's dotted name."""

IMAGE_ELEMENTS = 1 << 25
"""Elements that one operation of a network may make for one image: 128 MiB in float32."""

BATCH_ELEMENTS = 1 << 26
"""Elements that one operation of a network may make for one batch of images: 256 MiB in float32."""

# CIFAR-10

CIFAR_FILE = 64 * MIB
"""Bytes of an unpacked file; a genuine batch has 30 MiB."""

CIFAR_ARCHIVE = 256 * MIB
"""Bytes of the unpacked archive; the genuine one has 178 MiB."""

CIFAR_HEADER = MIB // 16
"""Bytes of the archive per member in addition to its content."""

CIFAR_INSTRUCTIONS = 200_000
"""Instructions of a batch; a genuine one has about 30,000, three per image."""

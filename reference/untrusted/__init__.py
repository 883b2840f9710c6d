"""Chapter 17: what is in a file of `torch.save`, whole networks included, without running anything that is in it.

`torch.load` of a whole network imports and calls what the file names, and so a file can do whatever it likes. Here a
file goes through three rooms, and in none of them is anything imported, called or looked up by a name from the file:

    container       a zip archive (PyTorch 1.6 and later), or the older row of pickles and numbers
    pickle_machine  the program that a pickle is, run with records instead of objects
    calls           the few functions that genuine files call, each written out: tensors and standard containers

No storage, tensor, text or list is made before it is known that the file has the bytes for it. Tensors take the memory
that they take in the file, once; all else takes at most eight times its length and half a KiB for each of at most
`pickle_machine.INSTRUCTIONS` instructions.
"""

from reference.untrusted.container import TorchFile, read_torch_file
from reference.untrusted.pickle_machine import Name, Record

__all__ = ["Name", "Record", "TorchFile", "read_torch_file"]

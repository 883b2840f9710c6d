"""Chapter 17: foreign files, read without running anything in them. This is the only place where they are parsed.

`torch.load` of a whole network imports and calls what the file names, and so a file can do whatever it likes. Here
nothing is imported, called or looked up by a name from the file:

    bounds          how much a file may make the program do
    archive         zip archives (PyTorch 1.6 and later): whatever they say twice must agree
    container       the archive, the older row of pickles and numbers, or a safetensors file
    kinds           names of other files, which are not read
    pickle_machine  the program that a pickle is, run with records instead of objects
    calls           the few functions that genuine files call, each written out: tensors and standard containers
    modules         records of modules: their tensors, and the network as `print` shows it
    layers          modules made to work where their `forward` is known

No storage, tensor, text or list is made before it is known that the file has the bytes for it. Tensors take the memory
that they take in the file, once; everything else takes at most eight times its length and half a KiB for each of at
most `bounds.INSTRUCTIONS` instructions. A network that is going to compute has at most `bounds.NETWORK_VIEWS` times as
many numbers as the file holds.
"""

from reference.untrusted.container import TorchFile, read_torch_file
from reference.untrusted.contents import what_it_is
from reference.untrusted.pickle_machine import Name, Record

__all__ = ["Name", "Record", "TorchFile", "read_torch_file", "what_it_is"]

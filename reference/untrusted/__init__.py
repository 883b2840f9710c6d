"""Chapter 17: reading foreign files without running any code in them. This is the only place where they are parsed.

`torch.load` of a whole network imports and calls the functions that the file names, so a file can do anything. Here no
name from the file is imported, called or looked up:

    bounds          limits on the work that a file may cause
    archive         zip archives (PyTorch 1.6 and later); all redundant fields must agree
    container       the archive, the older sequence of pickles and numbers, or a safetensors file
    kinds           names of other files, which are not read
    pickle_machine  a machine that runs a pickle with records instead of objects
    calls           the few functions that genuine files call, each reimplemented: tensors and standard containers
    modules         records of modules: their tensors, and the network as `print` shows it
    layers          working modules, for each known `forward`

No storage, tensor, text or list is allocated before it is known that the file has the bytes for it. Tensors take the
memory that they take in the file, once; everything else takes at most eight times its length and half a KiB for each of
at most `bounds.INSTRUCTIONS` instructions. A network that is to be run has at most `bounds.NETWORK_VIEWS` times the
number of elements in the file.
"""

from reference.untrusted.container import TorchFile, read_torch_file
from reference.untrusted.contents import what_it_is
from reference.untrusted.pickle_machine import Name, Record

__all__ = ["Name", "Record", "TorchFile", "read_torch_file", "what_it_is"]

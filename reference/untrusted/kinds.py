"""Recognizing files that `torch.save` did not write, by their first bytes or by the members of an archive."""

from collections.abc import Collection

STARTS = (
    (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file, as Keras writes them: convert it in Keras"),
    (b"GGUF", "it is a GGUF file, a language model for llama.cpp"),
    (b"\x93NUMPY", "it is a NumPy array (.npy)"),
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file itself: fetch it with git lfs pull"),
    (b"\x89PNG", "it is an image"),
    (b"\xff\xd8\xff", "it is an image"),
    (b"\x1f\x8b", "it is packed with gzip: unpack it first"),
    (b"BZh", "it is packed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "it is packed with xz: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "it is packed with 7-Zip: unpack it first"),
    (b"Rar!", "it is packed with RAR: unpack it first"),
    (b"<", "it is a web page or an XML file, perhaps the answer of a server instead of the file"),
)
REMEDY = "let the program that made it write its state dict with torch.save or safetensors"


def of_start(start: bytes) -> str | None:
    """The kind of a file that begins with these bytes (at least 512, or the whole file); None if it is not known."""
    for mark, kind in STARTS:
        if start.startswith(mark):
            return kind
    if is_safetensors(start):
        return "it is a safetensors file"
    if start[4:8] == b"TFL3":
        return "it is a TensorFlow Lite file"
    if start[257:262] == b"ustar":
        return "it is a tar archive, as PyTorch before 0.1.10 wrote; let a PyTorch 1 save it anew"
    if is_onnx(start):
        return f"it is an ONNX file, a graph and not a network of PyTorch: {REMEDY}"
    return None


def is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of a header in 8 bytes, and the header with a JSON object."""
    return len(start) > 9 and start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") < 1 << 40


def is_onnx(start: bytes) -> bool:
    """Whether a file begins as a serialized `ModelProto`: its version, then its producer, a domain or the graph."""
    if len(start) < 4 or start[0] != 0x08 or not 1 <= start[1] < 0x80:  # field 1, a number: ir_version
        return False
    field, length = start[2], start[3]
    if field == 0x3A:  # the graph
        return True
    return field in (0x12, 0x1A, 0x22) and start[4 : 4 + length].isascii() and len(start) > 4 + length


def of_archive(names: Collection[str]) -> str | None:
    """The kind of a zip archive with these members, if it is not one of `torch.save`; None if it could be one."""
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return f"it is a TorchScript archive, a program and not data: {REMEDY}"
    if "data.pkl" in inner:
        return None
    if {"archive_format", "serialized_exported_program.json", "models/model.json"} & inner:
        return f"it is an archive of torch.export, a program and not data: {REMEDY}"
    if names and all(name.endswith(".npy") for name in names):
        return "it is an archive of NumPy arrays (.npz)"
    if {"config.json", "metadata.json"} <= set(names):
        return "it is a Keras file: convert it in Keras"
    return "it is a zip archive, but has no data.pkl as those of torch.save do"

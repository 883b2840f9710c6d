"""Documents on which the check of documents is tested."""

import json

from spec.support.listings import LISTINGS

_HEADINGS = {1415: "## 搭建神经网络（model.py）", 1451: "## 训练模块（train.py）"}
"""Headings of the tutorial that name files, by the line of the listing under them."""


def tutorial() -> str:
    """The tutorial's listings at their lines, with the headings and the comment on which their verdicts depend."""
    lines = [""] * (max(last for last, _ in LISTINGS.values()) + 1)
    for first, (last, code) in LISTINGS.items():
        language = "shell" if first == 100 else "python"
        shown = code.rstrip("\n").splitlines()
        if first == 738:
            shown.insert(shown.index("ocean = Ocean()"), "# 报错是正常的，RuntimeError")
        if first in _HEADINGS:
            lines[first - 2] = _HEADINGS[first]
        assert len(shown) <= last - first - 1, f"{first}: the rebuilt listing is longer than the printed one"
        shown = [line.rpartition("  # ")[0] if line.rpartition("# ")[2].isdigit() else line for line in shown]
        lines[first - 1] = f"```{language}"
        lines[first : first + len(shown)] = shown
        lines[last - 1] = "```"
    return "\n".join(lines) + "\n"


CONTINUED = """\
# 一步一步

First the imports.

```python
import torch
from torch import nn
```

```python
x = torch.arange(6.).reshape(2, 3)
print(x.shape)  # torch.Size([2, 3])
```

```python
x.sum()
```

```
tensor(15.)
```

A complete program, which changes nothing of the others:

```python
import torch
x = torch.zeros(1)
print(x)  # 输出：tensor([0.])
```

```python
net = nn.Linear(3, 1)
y = net(x)
print(y)
# tensor([[0.1], [0.2]], grad_fn=<AddmmBackward0>)
```

```python
print(y.shape)  # torch.Size([1, 2])
```

```python
for step in range(3):
    loss = net(x).sum()
    loss.backward()
```

1. In a list:

   ```python
   print(loss.shape)
   # torch.Size([])
   ```

2. A signature and a fragment:

   ```python
   torch.nn.Linear(in_features, out_features, bias=True)
   ```

   ```python
   for batch in my_batches:
       ...
   ```

```python
>>> a = torch.ones(2)
>>> a + a
tensor([2., 2.])
```

```
$ pip install torch
```

```python
torch.manual_seed(0)
print(torch.rand(1))  # tensor([0.1234])
```

```python
    def forward(self, x):
        return self.layer(x)
```

```python
while True:
    pass
```
"""
"""Many small listings that continue each other."""

HOSTILE = """\
```python
import os
os.remove("TARGET")
```

```python
import shutil
shutil.rmtree("FOLDER")
```

```python
import os
while True:
    os.fork()
```

```python
while True:
    print("without end " * 100)
```

```python
import socket
socket.create_connection(("127.0.0.1", PORT))
```

```python
import os, signal
os.kill(os.getppid(), signal.SIGKILL)
```

```python
import os
os.system("rm -rf FOLDER")
```

```python
import ctypes, os
libc = ctypes.CDLL(None)
libc.unlink(b"TARGET")
libc.kill(os.getppid(), 9)
libc.kill(PARENT, 9)
```

```python
open("TARGET", "w").write("changed")
```

```python
import os
if os.fork() == 0:
    os.setsid()
    import time
    while True:
        pass
```

```python
rows = bytearray(5 * 2**30)
```

```python
import os
os._exit(0)
```

```python
def again():
    try:
        while True:
            pass
    except BaseException:
        again()
again()
```

```python
print("still here")
```
"""
"""Listings that want to harm; TARGET, FOLDER, PORT and PARENT are filled in."""


def notebook() -> str:
    """A notebook with outputs: right ones, random ones, a wrong one, and an error that it shows."""

    def code(source: str, *outputs: dict) -> dict:
        return {
            "cell_type": "code", "source": source, "outputs": list(outputs), "metadata": {}, "execution_count": 1
        }  # fmt: skip

    def printed(text: str) -> dict:
        return {"output_type": "stream", "name": "stdout", "text": text}

    def value(text: str) -> dict:
        return {"output_type": "execute_result", "data": {"text/plain": text}, "metadata": {}, "execution_count": 1}

    def error(name: str) -> dict:
        return {"output_type": "error", "ename": name, "evalue": "", "traceback": []}

    cells = [
        {"cell_type": "markdown", "source": "# A notebook", "metadata": {}},
        code("%matplotlib inline\n!pip install torch\nimport torch\nfrom IPython.display import clear_output"),
        code("x = torch.arange(4)\nx * 2", value("tensor([0, 2, 4, 6])")),
        code("print(x.sum())", printed("tensor(7)\n")),
        code("torch.rand(2)", value("tensor([0.1, 0.2])")),
        code("x.reshape(3)", error("RuntimeError")),
        code("%%bash\nls"),
        code("%%time\ny = x + 1"),
        code("import matplotlib.pyplot as plt\nplt.plot(y)\nplt.show()"),
        code("undefined_everywhere(y)"),
        code("z = y.float().next()"),
    ]
    book = {"cells": cells, "metadata": {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}}
    return json.dumps(book | {"nbformat": 4, "nbformat_minor": 4})

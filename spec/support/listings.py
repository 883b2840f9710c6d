"""The tutorial's 49 listings, rebuilt: the same statements in the same order, with the same mistakes.

No text of the tutorial is copied. Names and comments are written for this project, and repeated lines are loops.
A statement on which the result depends ends in a comment with its line in the tutorial: `# 62`.
"""

import runpy
import sys
import traceback
import warnings
from collections.abc import Mapping
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets.cifar
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spec.support.cifar_archives import TRAIN, meta, python2_pickle, write_folder

PHOTOGRAPH = (768, 512)
"""Width and height of the photograph of an ant in the listings of the chapters 02 to 04."""


def network(line: int | str, *, outputs: int = 10) -> str:
    """The chapter's network, which the listings repeat from chapter 13 on.

    Args:
        line: The tutorial's line of its `class`.
        outputs: Of the last layer.
    """
    return f"""\
class Ocean(nn.Module):  # {line}
    def __init__(self):
        super(Ocean, self).__init__()
        layers = []
        for channels, kernels in ((3, 32), (32, 32), (32, 64)):
            layers += [Conv2d(channels, kernels, 5, padding=2), MaxPool2d(2)]
        self.model1 = Sequential(*layers, Flatten(), Linear(1024, 64), Linear(64, {outputs}))

    def forward(self, x):
        return self.model1(x)
"""


LAYERS = "from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential, Sigmoid\n"
BOARD = "from torch.utils.tensorboard import SummaryWriter\n"
CIFAR = """\
tool = torchvision.transforms.ToTensor()
data = torchvision.datasets.CIFAR10("{root}", train=False, transform=tool{download})  # {line}
loader = DataLoader(data, batch_size={batch})
"""


def cifar10_test_set(line: int, root: str = "test/dataset", batch: int = 64, download: str = "") -> str:
    """The data set and the loader with which the listings of the chapters 09 to 15 begin."""
    return (
        "import torch\nimport torchvision\nfrom torch import nn\n"
        + LAYERS
        + "from torch.utils.data import DataLoader\n"
        + BOARD
        + CIFAR.format(root=root, batch=batch, download=download, line=line)
    )


TRAINING = """\
import time
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
<imports>
<device>
tool = torchvision.transforms.ToTensor()
both = [
    torchvision.datasets.CIFAR10(root="test/data", train=train, transform=tool, download=True)
    for train in (True, False)
]
print("训练数据集的长度为：{}".format(len(both[0])))
print("测试数据集的长度为：{}".format(len(both[1])))
train_loader, test_loader = DataLoader(both[0], batch_size=64), DataLoader(both[1], batch_size=64)
<network>
ocean = Ocean()
<move ocean>
loss_function = nn.CrossEntropyLoss()
<move loss>
optimizer = torch.optim.SGD(ocean.parameters(), lr=1e-2)
steps = tests = 0
writer = SummaryWriter("test/logs_train")
start = time.time()
for epoch in range(<epochs>):
    print("-------第 {} 轮训练开始-------".format(epoch + 1))
    ocean.train()
    for images, targets in train_loader:
<move batch>
        loss = loss_function(ocean(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps = steps + 1
        if steps % 100 == 0:
<time>
            print("训练次数：{}, Loss: {}".format(steps, loss.item()))
            writer.add_scalar("train_loss", loss.item(), steps)
    ocean.eval()
    loss_sum, right = 0, 0
    with torch.no_grad():
        for images, targets in test_loader:
<move batch>
            outputs = ocean(images)
            loss_sum = loss_sum + loss_function(outputs, targets).item()
            right = right + (outputs.argmax(1) == targets).sum()
    print("整体测试集上的Loss: {}".format(loss_sum))
    print("整体测试集上的正确率: {}".format(right / len(both[1])))
    writer.add_scalar("test_loss", loss_sum, tests)
    writer.add_scalar("test_accuracy", right / len(both[1]), tests)
    tests = tests + 1
    torch.save(ocean, "<file>".format(epoch))
    print("模型已保存")
writer.close()
"""
"""The training of the chapters 18 to 21: with `model.py`, `.cuda()` or `.to(device)`, with a timer or without."""


def training(
    *, method: str = "", line: int = 0, timer: bool = False, epochs: int = 10, file: str = "ocean_{}.pth"
) -> str:
    """One of the five trainings.

    Args:
        method: "" (chapter 18: the network comes from model.py), "cuda" (method 1) or "to" (method 2).
        line: The tutorial's line that moves the network.
        timer: Whether every hundredth step prints the seconds since the beginning.
        epochs: The number of epochs.
        file: The name under which the network is saved after each epoch.
    """
    asked, own = "if torch.cuda.is_available():\n    ", LAYERS + BOARD
    parts = {
        "": {"imports": BOARD + "from model import *  # 1455\n"},
        "cuda": {
            "imports": own,
            "move ocean": f"{asked}unused = ocean.cuda()  # {line}\n",
            "move loss": f"{asked}loss_function = loss_function.cuda()\n",
            "move batch": "{0}if torch.cuda.is_available():\n{0}    images = images.cuda()\n"
            "{0}    targets = targets.cuda()\n",
        },
        "to": {
            "imports": own,
            "device": 'device = torch.device("cuda:0")\n',
            "move ocean": f"ocean.to(device)  # {line}\n",
            "move loss": "loss_function.to(device)\n",
            "move batch": "{0}images = images.to(device)\n{0}targets = targets.to(device)\n",
        },
    }[method]
    parts |= {"epochs": str(epochs), "file": file, "network": network(line) if method else ""}
    parts["time"] = "            print(time.time() - start)\n" if timer else ""
    text = TRAINING
    batch = parts.get("move batch", "")
    text = text.replace("<move batch>\n", batch.format(" " * 8), 1).replace("<move batch>\n", batch.format(" " * 12), 1)
    for name in ("imports", "device", "network", "move ocean", "move loss", "time"):
        text = text.replace(f"<{name}>\n", parts.get(name, ""))
    return text.replace("<epochs>", parts["epochs"]).replace("<file>", parts["file"])


LOSS = """\
import torch
from torch import nn

inputs = torch.tensor([1, 2, 3], dtype=torch.float32)
targets = torch.tensor([1, 2, 5], dtype=torch.float32)
inputs = torch.reshape(inputs, (1, 1, 1, 3))
targets = torch.reshape(targets, (1, 1, 1, 3))
"""
ANT = "from PIL import Image\nfrom torch.utils.tensorboard import SummaryWriter\nfrom torchvision import transforms\n"

LISTINGS: dict[int, tuple[int, str]] = {
    37: (
        77,
        """\
import os
import torchvision
from PIL import Image
from torch.utils.data import Dataset

class Images(Dataset):
    def __init__(self):  # 47
        self.root.dir = root_dir  # 48
        self.label.dir = label_dir  # 49
        self.path = os.path.join(self.root_dir, self.label_dir)
        self.names = os.listdir(self.path)

    def __getitem__(self, index):
        image.name = self.names[index]  # 55
        image = Image.open(os.path.join(self.root_dir, self.label_dir, name))
        laber = self.label_dir  # 58
        return image, label

    def __len__(self)  # 62
        return len(self.names)

root_dir = "dataset/train"
ants_label_dir = "ants"
ants = Images(root_dir, label_dir)  # 68
root_dir = "./dataset/train"
label_dir = "bees"
bees = Images(root_dir, label_dir)
both = ants + bees
""",
    ),
    87: (
        96,
        BOARD
        + 'writer = SummaryWriter("02testTB/logs")\nfor i in range(100):\n'
        + '    writer.add_scalar("y=2x", 2 * i, i)\nwriter.close()\n',
    ),
    100: (105, "python 02testTB/testTB.py\n\ntensorboard --logdir=02testTB/logs --port=6007\n"),
    115: (
        130,
        """\
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
import numpy as np

writer = SummaryWriter("01test/logs")
array = np.array(Image.open("01test/dataset/train/ants_image/0013035.jpg"))
writer.add_image("img test", array, 1, dataformats="HWC")  # 128
writer.close()
""",
    ),
    146: (149, "tensor_img.grad = 0  # 147\ntensor_img.requires_grad = False  # 148\n"),
    153: (
        175,
        ANT
        + """\
tool = transforms.ToTensor()
tensor = tool(Image.open("01test/dataset/train/ants_image/0013035.jpg"))
print(tensor)
writer = SummaryWriter("01test/logs")
writer.add_image("tensor img", tensor, 1)
writer.close()
""",
    ),
    188: (
        215,
        ANT
        + """\
writer = SummaryWriter("test/logs")
image = Image.open("test/train/ants_image/0013035.jpg")
print(image)
tensor = transforms.ToTensor()(image)
writer.add_image("ToTensor", tensor)
writer.close()  # 203
print(tensor[0][0][0])
normalized = transforms.Normalize([1, 3, 5], [0.5, 0.5, 0.5])(tensor)
print(normalized[0][0][0])
writer.add_image("Normalize", normalized, 1)  # 213
writer.close()
""",
    ),
    222: (
        265,
        ANT
        + """\
writer = SummaryWriter("test/logs")
image = Image.open("test/train/ants_image/0013035.jpg")
print(image)
to_tensor = transforms.ToTensor()
writer.add_image("ToTensor", to_tensor(image))
writer.close()  # 237
print(image.size)
resized = to_tensor(transforms.Resize((512, 512))(image))
writer.add_image("Resize", resized, 0)  # 247
print(resized)
writer.close()
composed = transforms.Compose([transforms.Resize(512), to_tensor])
writer.add_image("Resize_2", composed(image), 1)  # 255
writer.close()
composed = transforms.Compose([transforms.RandomCrop(512), to_tensor])
for i in range(10):
    writer.add_image("RandomCrop", composed(image), i)  # 263
writer.close()
""",
    ),
    277: (
        282,
        """\
import torchvision
train_set = torchvision.datasets.CIFAR10(root="test/dataset1", train=True, download=True)
test_set = torchvision.datasets.CIFAR10(root="test/dataset1", train=True, download=True)  # 281
""",
    ),
    284: (
        309,
        """\
import torchvision
from torch.utils.tensorboard import SummaryWriter
from torchvision import transforms

chain = transforms.Compose([torchvision.transforms.ToTensor()])
train_set = torchvision.datasets.CIFAR10(root="./dataset", train=True, transform=chain, download=True)
test_set = torchvision.datasets.CIFAR10(root="./dataset", train=False, transform=chain, download=True)
writer = SummaryWriter("01test/logs")
for i in range(10):
    image, target = train_set[i]
    writer.add_image("test torchvison compose", image, i)
writer.close()
""",
    ),
    324: (
        358,
        """\
import torchvision
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

test_data = torchvision.datasets.CIFAR10("./dataset", train=False, transform=torchvision.transforms.ToTensor())
loader = DataLoader(dataset=test_data, batch_size=64, shuffle=True, num_workers=0, drop_last=True)
image, target = test_data[0]
print(image.shape)
print(target)
writer = SummaryWriter("test/logs")
for epoch in range(2):
    step = 0
    for images, targets in loader:
        writer.add_images("Epoch: {}".format(epoch), images, step)
        step = step + 1
writer.close()
""",
    ),
    375: (
        396,
        """\
import torch
from torch import nn

class Ocean(nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, input):
        return input + 1

ocean = Ocean()
print(ocean(torch.tensor(1.0)))
""",
    ),
    416: (
        456,
        """\
import torch
import torch.nn.functional as F

rows = [[1, 2, 0, 3, 1], [0, 1, 2, 3, 1], [1, 2, 1, 0, 0], [5, 2, 3, 1, 1], [2, 1, 0, 1, 1]]
input = torch.reshape(torch.tensor(rows), (1, 1, 5, 5))
kernel = torch.reshape(torch.tensor([[1, 2, 1], [0, 1, 0], [2, 1, 0]]), (1, 1, 3, 3))
print(F.conv2d(input, kernel, stride=1))
print(F.conv2d(input, kernel, stride=1, padding=1))
""",
    ),
    488: (
        531,
        cifar10_test_set(500)
        + """\
class Ocean(nn.Module):
    def __init__(self):
        super(Ocean, self).__init__()
        self.conv1 = Conv2d(in_channels=3, out_channels=6, kernel_size=3, stride=1, padding=0)

    def forward(self, x):
        return self.conv1(x)

ocean = Ocean()
print(ocean)
writer = SummaryWriter("test/logs")
step = 0
for images, target in loader:
    output = ocean(images)
    print(images.shape)
    print(output.shape)
    writer.add_images("before conv2d", images, step)
    writer.add_images("after conv2d", torch.reshape(output, (-1, 3, 30, 30)), step)
    step = step + 1
writer.close()
""",
    ),
    535: (544, "Ocean(\n  (conv1): Conv2d(3, 6, kernel_size=(3, 3), stride=(1, 1))  # 538\n)\n"),
    572: (
        610,
        cifar10_test_set(585)
        + """\
class Ocean(nn.Module):
    def __init__(self):
        super(Ocean, self).__init__()
        self.maxpool1 = MaxPool2d(kernel_size=3, ceil_mode=False)

    def forward(self, input):
        return self.maxpool1(input)

ocean = Ocean()
writer = SummaryWriter("test/maxlogs")
step = 0
for images, targets in loader:
    writer.add_images("input", images, step)
    writer.add_images("output", ocean(images), step)
    step = step + 1
writer.close()
""",
    ),
    633: (
        668,
        "import torch\nimport torchvision\nfrom torch import nn\n"
        + LAYERS
        + """\
input = torch.reshape(torch.tensor([[1, -0.5], [-1, 3]]), (-1, 1, 2, 2))
print(input.shape)

class Ocean(nn.Module):
    def __init__(self):
        super(Ocean, self).__init__()
        self.relu1 = ReLU()

    def forward(self, input):
        return self.relu1(input)

ocean = Ocean()
print(ocean(input))
""",
    ),
    676: (
        720,
        cifar10_test_set(688)
        + """\
class Ocean(nn.Module):
    def __init__(self):
        super(Ocean, self).__init__()
        self.sigmoid1 = Sigmoid()

    def forward(self, input):
        return self.sigmoid1(input)

ocean = Ocean()
writer = SummaryWriter("test/maxlogs")
step = 0
for images, target in loader:
    writer.add_images("input_Sigmoid", images, global_step=step)
    writer.add_images("output_Sigmoid", ocean(images), global_step=step)
    step = step + 1
writer.close()
""",
    ),
    738: (
        772,
        cifar10_test_set(750)
        + """\
class Ocean(nn.Module):
    def __init__(self):
        super(Ocean, self).__init__()
        self.linear1 = Linear(196608, 10)

    def forward(self, input):
        return self.linear1(input)  # 760

ocean = Ocean()
for images, target in loader:
    print(images.shape)
    output = torch.reshape(images, (1, 1, 1, -1))
    print(output.shape)
    output = ocean(output)
    print(output.shape)
""",
    ),
    781: (
        824,
        cifar10_test_set(793)
        + """\
class Ocean(nn.Module):
    def __init__(self):
        super(Ocean, self).__init__()
        self.linear1 = Linear(196608, 10)

    def forward(self, input):
        return self.linear1(input)

ocean = Ocean()  # 806
for images, target in loader:
    print(images.shape)
    print(torch.flatten(images).shape)
""",
    ),
    847: (
        886,
        """\
import torch
from torch import nn
from torch.nn import Conv2d, MaxPool2d, Flatten, Linear, Sequential
from torch.utils.tensorboard import SummaryWriter

class Ocean(nn.modules):  # 854
    def __init__(self):
        super(Ocean, self).__init__()
        self.conv1 = Conv2d(in_channels=3, out_channels=32, kernel_size=5, stride=1, padding=2)
        self.maxpool1 = MaxPool2d(kernel_size=2)
        self.conv2 = Conv2d(in_channels=32, out_channels=32, kernel_size=5, stride=1, padding=2)
        self.maxpool2 = MaxPool2d(kernel_size=2)
        self.conv3 = Conv2d(in_channels=32, out_channels=64, kernel_size=5, stride=1, padding=2)
        self.maxpool3 = MaxPool2d(kernel_size=2)
        self.flatten = Flatten()
        self.linear1 = Linear(in_features=1024, out_features=64)
        self.linear2 = Linear(in_features=64, out_features=10)

        def forward(self, x):  # 868
            x = self.maxpool1(self.conv1(x))
            x = self.maxpool2(self.conv2(x))
            x = self.maxpool3(self.conv3(x))
            return self.linear2(self.linear1(self.flatten(x)))

ocean = Ocean  # 880
print(ocean)
input = torch.ones((64, 3, 32, 32))
output = ocean(input)  # 884
print(output.shape)
""",
    ),
    890: (
        927,
        "import torch\nfrom torch import nn\n"
        + LAYERS
        + BOARD
        + network(897)
        + """\

ocean = Ocean()
print(ocean)
input = torch.ones((64, 3, 32, 32))
print(ocean(input).shape)
writer = SummaryWriter("test/maxlogs")
writer.add_graph(ocean, input)  # 925
writer.close()
""",
    ),
    965: (984, LOSS + "loss = nn.L1Loss()\nprint(loss(inputs, targets))\n"),
    996: (1016, LOSS + 'loss = nn.MSELoss(reduction="sum")\nprint(loss(inputs, targets))\n'),
    1026: (
        1049,
        LOSS
        + """\
x = torch.tensor([0.1, 0.2, 0.3])
y = torch.tensor([1])
x = torch.reshape(x, (1, 3))
loss = nn.CrossEntropyLoss()
print(loss(x, y))
""",
    ),
    1053: (
        1091,
        cifar10_test_set(1061, batch=1, download=", download=True")
        + network(1064, outputs=64)
        + """\

loss = nn.CrossEntropyLoss()
ocean = Ocean()
for images, targets in loader:
    loss(ocean(images), targets).backward()
    print("ok")
""",
    ),
    1102: (
        1147,
        cifar10_test_set(1111, download=", download=True")
        + network(1114)
        + """\

loss = nn.CrossEntropyLoss()
ocean = Ocean()
optimizer = torch.optim.SGD(ocean.parameters(), lr=0.01)
for epoch in range(20):
    running = 0.0
    for images, targets in loader:
        result = loss(ocean(images), targets)
        optimizer.zero_grad()
        result.backward()
        optimizer.step()
        running = running + result
    print(running)
""",
    ),
    1169: (
        1189,
        """\
import torchvision
from torch import nn

train_data = torchvision.datasets.CIFAR10("test/dataset", train=True, transform=torchvision.transforms.ToTensor(),
                                          download=True)
without = torchvision.models.vgg16(pretrained=False)  # 1179
pretrained = torchvision.models.vgg16(pretrained=True)  # 1180
pretrained.add_module("7", nn.Linear(1000, 10))
print(pretrained)
without.classifier[6] = nn.Linear(4096, 10)
print(without)
""",
    ),
    1193: (
        1284,
        "VGG(\n  (features): Sequential(  # 1195\n"
        "    (0): Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))\n  )\n)\n",
    ),
    1301: (
        1312,
        """\
import torchvision
import torch
vgg16 = torchvision.models.vgg16(pretrained=False)
torch.save(vgg16, "vgg16_method1.pth")
model = torch.load("vgg16_method1.pth")  # 1310
print(model)
""",
    ),
    1318: (
        1330,
        """\
import torchvision
import torch
vgg16 = torchvision.models.vgg16(pretrained=False)
torch.save(vgg16.state_dict, "vgg16_method2.pth")  # 1326
model = torch.load("vgg16_method2.pth")  # 1328
print(model)
""",
    ),
    1339: (1364, network(1342) + '\nocean = Ocean()\ntorch.save(ocean, "ocean_save_method1.pth")  # 1363\n'),
    1368: (1370, 'ocean = torch.load("test/ocean_save_method1.pth")  # 1369\n'),
    1374: (
        1376,
        "AttributeError: Can't get attribute 'Ocean' on <module '__main__' from 'save.py'>  # 1375\n",
    ),
    1384: (1386, "from xxxx import *  # 1385\n"),
    1388: (1407, network(1389)),
    1415: (
        1447,
        "import torch\nfrom torch import nn\n"
        + LAYERS
        + network(1422)
        + '\nif __name__ == "__main__":\n    ocean = Ocean()\n    print(ocean(torch.ones((64, 3, 32, 32))).shape)\n',
    ),
    1451: (1543, training()),
    1569: (1709, training(method="cuda", line=1622)),
    1726: (1728, ' device = torch.device("cpu")  # 1727\n'),
    1732: (1735, 'device = torch.device("cuda")  # 1733\ndevice = torch.device("cuda:0")  # 1734\n'),
    1739: (1742, 'device = torch.device("cuda:0")  # 1740\ndevice = torch.device("cuda:1")  # 1741\n'),
    1744: (1887, training(method="to", line=1800, timer=True)),
    1911: (2054, training(method="to", line=1967, timer=True, epochs=50, file="ocean_{}_pp.pth")),
    2060: (
        2114,
        """\
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, Sequential

image = Image.open("test/images/dog2.jpg")  # 2067
image = image.convert("RGB")
print(image)
transform = torchvision.transforms.Compose([torchvision.transforms.Resize((32, 32)),
                                            torchvision.transforms.ToTensor()])
image = transform(image)
print(image)

"""
        + network(2081)
        + """\

model = torch.load("./ocean_9_p.pth", map_location=torch.device("cpu"))  # 2102
print(model)
image = torch.reshape(image, (1, 3, 32, 32))
model.eval()
with torch.no_grad():
    output = model(image)
print(output)
print(output.argmax(1))
""",
    ),
    2154: (2156, "import torch  # 2155\n"),
    2158: (2161, "print(torch.__version__)  # 2159\n"),
    2163: (2167, "print(torch.cuda.is_available())  # 2164\n"),
    2173: (2315, training(method="cuda", line=2226, timer=True)),
}
"""By the tutorial's line of the fence that opens a listing: the line of the fence that closes it, and the listing."""


@dataclass(frozen=True)
class Outcome:
    """The result of a program.

    Attributes:
        out: Its output.
        error: The exception that ended it, or None.
        line: The tutorial's line that it ended at, or 0.
        names: Its global names.
        warnings: The texts of the warnings that were given.
        folder: Its working folder.
    """

    out: str
    error: BaseException | None
    line: int
    names: dict[str, Any]
    warnings: list[str]
    folder: Path

    def board(self, logs: str) -> EventAccumulator:
        """The events that TensorBoard reads from a folder of event files."""
        return EventAccumulator(str(self.folder / logs), size_guidance={"scalars": 0, "images": 0}).Reload()

    def event_files(self, logs: str) -> int:
        """The number of event files in a folder."""
        return len([*(self.folder / logs).glob("events.out.tfevents.*")])


def run(source: str, folder: Path, names: Mapping[str, Any] | None = None) -> Outcome:
    """Run a program to its end, or to its error, in a folder with the files that the listings read.

    Args:
        source: The program.
        folder: Its working folder.
        names: The initial global names, as for a notebook cell after other cells.
    """
    path = folder / "program.py"
    path.write_text(source, encoding="utf-8")
    out, error, found = StringIO(), None, {}
    check, torchvision.datasets.cifar.check_integrity = torchvision.datasets.cifar.check_integrity, lambda *_: True
    sys.path.insert(0, str(folder))  # the folder of the script, where train.py finds model.py
    try:
        with (
            chdir(folder),
            redirect_stdout(out),
            warnings.catch_warnings(record=True) as caught,
            torch.random.fork_rng(devices=[]),
        ):
            warnings.simplefilter("always")
            torch.manual_seed(0)
            try:
                found = runpy.run_path(path.name, init_globals=dict(names or {}), run_name="__main__")
            except Exception as raised:
                error = raised
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("model", None)
        torchvision.datasets.cifar.check_integrity = check  # the files are not the official ones
    said = [str(warning.message) for warning in caught]
    return Outcome(out.getvalue(), error, _line(source, error), found, said, folder)


def _line(source: str, error: BaseException | None) -> int:
    """The number in the comment of the line at which a program ended."""
    if error is None:
        return 0
    if isinstance(error, SyntaxError):
        number = error.lineno or 0
    else:
        frames = traceback.extract_tb(error.__traceback__)
        number = next(frame.lineno or 0 for frame in reversed(frames) if frame.filename.endswith("program.py"))
    comment = source.splitlines()[number - 1].rpartition("# ")[2]
    return int(comment) if comment.isdigit() else 0


def write_cifar10(folder: Path, *roots: str, train: int = 80, test: int = 80) -> None:
    """Small files of CIFAR-10 under each root; 80 images and 592 leave a last batch of 16, as the real sizes do."""
    generator = np.random.default_rng(0)
    shares = [train // 5 + (i < train % 5) for i in range(5)]
    files = {"batches.meta": python2_pickle(meta())}
    for name, count in zip((*TRAIN, "test_batch"), (*shares, test), strict=True):
        labels = [i % 10 for i in range(count)]
        files[name] = python2_pickle({"labels": labels, "data": generator.integers(0, 256, (count, 3072), np.uint8)})
    for root in roots:
        write_folder(folder / root, files)


def write_photograph(folder: Path, *paths: str) -> None:
    """The photograph of an ant under each of the paths; its first byte is 80."""
    pixels = np.full((PHOTOGRAPH[1], PHOTOGRAPH[0], 3), 80, np.uint8)
    pixels[100:300, 200:600] = np.linspace(0, 255, 400, dtype=np.uint8)[:, None]
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / path)

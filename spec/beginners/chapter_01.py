"""A folder of images that share a label."""

import os

from PIL import Image
from torch.utils.data import Dataset


class LabeledFolder(Dataset):
    def __init__(self, root_dir, label_dir):
        self.root_dir = root_dir
        self.label_dir = label_dir
        self.path = os.path.join(root_dir, label_dir)
        self.names = sorted(os.listdir(self.path))

    def __getitem__(self, index):
        image = Image.open(os.path.join(self.path, self.names[index]))
        return image, self.label_dir

    def __len__(self):
        return len(self.names)

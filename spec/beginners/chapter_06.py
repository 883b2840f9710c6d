"""Batches of a data set."""

import torch


class DataLoader:
    def __init__(self, dataset, batch_size=1, shuffle=False, drop_last=False):
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last

    def __len__(self):
        if self.drop_last:
            return len(self.dataset) // self.batch_size
        return (len(self.dataset) + self.batch_size - 1) // self.batch_size

    def __iter__(self):
        order = list(range(len(self.dataset)))
        if self.shuffle:
            order = torch.randperm(len(self.dataset)).tolist()
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            if self.drop_last and len(indices) < self.batch_size:
                return
            items = [self.dataset[i] for i in indices]
            if isinstance(items[0], tuple):
                yield [self.stack([item[i] for item in items]) for i in range(len(items[0]))]
            else:
                yield self.stack(items)

    def stack(self, values):
        if isinstance(values[0], torch.Tensor):
            return torch.stack(values)
        return torch.tensor(values)

"""The last part of the PyTorch tutorial "Training with PyTorch", as it stands there, for so many epochs.

python tutorial_job.py EPOCHS FOLDER
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import torch
from contenders import garments
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from work import JOBS, SAMPLES


def main() -> None:
    """Train, validate and save each epoch."""
    epochs, folder = int(sys.argv[1]), Path(sys.argv[2])
    job = JOBS["lenet-4"]
    training_loader = DataLoader(garments(*job.samples(SAMPLES)), batch_size=4, shuffle=True, num_workers=2)
    validation_loader = DataLoader(garments(*job.samples(10_000)), batch_size=4, shuffle=False, num_workers=2)
    model, optimizer = job.make()
    loss_fn = torch.nn.CrossEntropyLoss()
    timestamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    writer = SummaryWriter(str(folder / f"fashion_trainer_{timestamp}"))
    best_vloss = 1_000_000.0

    def train_one_epoch(epoch_index, tb_writer):
        running_loss = 0.0
        last_loss = 0.0
        for i, data in enumerate(training_loader):
            inputs, labels = data
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = loss_fn(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if i % 1000 == 999:
                last_loss = running_loss / 1000
                tb_x = epoch_index * len(training_loader) + i + 1
                tb_writer.add_scalar("Loss/train", last_loss, tb_x)
                running_loss = 0.0
        return last_loss

    for epoch in range(epochs):
        model.train(True)
        avg_loss = train_one_epoch(epoch, writer)
        running_vloss = 0.0
        model.eval()
        with torch.no_grad():
            for i, vdata in enumerate(validation_loader):  # noqa: B007 (as it stands in the tutorial)
                vinputs, vlabels = vdata
                voutputs = model(vinputs)
                running_vloss += loss_fn(voutputs, vlabels)
        avg_vloss = running_vloss / (i + 1)
        writer.add_scalars("Training vs. Validation Loss", {"Training": avg_loss, "Validation": avg_vloss}, epoch + 1)
        writer.flush()
        if avg_vloss < best_vloss:
            best_vloss = avg_vloss
            torch.save(model.state_dict(), folder / f"model_{timestamp}_{epoch}")


if __name__ == "__main__":
    main()

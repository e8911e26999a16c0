"""A small network learns from a large one's answers (Hinton and others, 2015).

Shows an objective that uses a second, frozen model, and two runs in one program, each with a directory of its own.

    python distillation.py [RUN]
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from surefoot import Objective, StepOptions, fit
from surefoot.data.garments import garments
from surefoot.models import MLP, LeNet5

STATED = 0.79  # the student's accuracy on held-out garments


class FromTeacher:
    """Cross entropy with the labels, and the divergence from the teacher's softened answers."""

    def __init__(self, teacher: nn.Module, warmth: float = 3.0):
        self.teacher, self.warmth = teacher.eval().requires_grad_(False), warmth

    def __call__(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        images, labels = batch
        outputs = model(images)
        wanted = (self.teacher(images) / self.warmth).log_softmax(1)
        student = (outputs / self.warmth).log_softmax(1)
        soft = F.kl_div(student, wanted, log_target=True, reduction="batchmean") * self.warmth**2
        hard = F.cross_entropy(outputs, labels)
        return {"loss": 0.3 * hard + 0.7 * soft, "outputs": outputs, "targets": labels, "soft": soft}


def main(run: str) -> float:
    """Train teacher and student; returns the student's accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(4000, 1000)

    teacher = LeNet5()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    fit(teacher, nn.CrossEntropyLoss(), optimizer, data, epochs=5, batch_size=64, run_dir=f"{run}/teacher", resume=True)
    student = MLP(hidden=(48,))
    result = fit(
        student,
        Objective(FromTeacher(teacher)),
        torch.optim.Adam(student.parameters(), lr=2e-3),
        data,
        epochs=12,
        batch_size=64,
        metrics=["accuracy"],
        step=StepOptions(ema_decay=0.99),
        run_dir=f"{run}/student",
        resume=True,
    )
    return result.metrics["val/accuracy"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/distillation")
    print(f"figure: the student's accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)

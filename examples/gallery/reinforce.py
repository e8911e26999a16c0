"""A pole is balanced by trial and error: the policy gradient (pytorch/examples: reinforcement_learning, reinforce).

Shows a loop with no data set: an episode is a step. What is random comes from torch's generator, which is in
every checkpoint; the running reward is a plain dictionary, which is saved as well.

    python reinforce.py [RUN]
"""

import math
import sys

import torch
from torch import nn

from surefoot import Checkpointer, Journal

STATED = 150.0  # mean length of 50 episodes, of at most 200 steps


def push(state: torch.Tensor, action: int) -> torch.Tensor:
    """A cart with a pole, 0.02 s later: Barto, Sutton and Anderson (1983). `state`: place, speed, angle, its speed."""
    place, speed, angle, turning = state.tolist()
    force, sine, cosine = (10.0 if action else -10.0), math.sin(angle), math.cos(angle)
    shared = (force + 0.05 * turning**2 * sine) / 1.1
    angular = (9.8 * sine - cosine * shared) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    linear = shared - 0.05 * angular * cosine / 1.1
    return torch.tensor([place + 0.02 * speed, speed + 0.02 * linear, angle + 0.02 * turning, turning + 0.02 * angular])


def episode(policy: nn.Module, longest: int = 200) -> list[torch.Tensor]:
    """Log probabilities of the actions taken until the pole falls (12 degrees), or the cart leaves (2.4 m)."""
    state, chosen = torch.rand(4) * 0.1 - 0.05, []
    while len(chosen) < longest and abs(state[0]) < 2.4 and abs(state[2]) < math.radians(12):
        log = policy(state).log_softmax(0)
        action = int(torch.multinomial(log.exp().detach(), 1))
        chosen.append(log[action])
        state = push(state, action)
    return chosen


def main(run: str, episodes: int = 400) -> float:
    """Train; returns the mean length of 50 episodes of the trained policy."""
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    reward = {"running": 10.0}
    parts = {"model": policy, "optimizer": optimizer, "reward": reward}
    with Journal(run) as journal, Checkpointer(run, journal=journal, every="20 steps", **parts) as saver:
        saver.resume()
        while saver.steps < episodes and reward["running"] < 190:
            chosen = episode(policy)
            reward["running"] += 0.05 * (len(chosen) - reward["running"])
            returns = torch.zeros(len(chosen))
            ahead = 0.0
            for step in reversed(range(len(chosen))):
                ahead = 1 + 0.99 * ahead
                returns[step] = ahead
            advantage = (returns - returns.mean()) / (returns.std(correction=0) + 1e-8)
            optimizer.zero_grad()
            (-torch.stack(chosen) * advantage).sum().backward()
            optimizer.step()
            journal.step(saver.steps + 1, {"length of an episode": len(chosen)})
            saver.step()
    with torch.no_grad():
        return sum(len(episode(policy)) for _ in range(50)) / 50


if __name__ == "__main__":
    length = main(sys.argv[1] if len(sys.argv) > 1 else "runs/reinforce")
    print(f"figure: mean length of an episode {length:.0f} (stated: at least {STATED:.0f})")
    sys.exit(not length >= STATED)

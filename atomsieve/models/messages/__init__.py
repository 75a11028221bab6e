"""The message filter(distance) x sender of a stack of members, and its implementations."""

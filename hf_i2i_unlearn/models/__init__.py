"""Models: a family a room, and beside them what all share."""

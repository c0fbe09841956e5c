"""What follows the tutorial: its blocks, and the terminals in which they are run."""

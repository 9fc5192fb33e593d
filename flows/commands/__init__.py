"""The commands of `sonoforge`, by what they are about."""

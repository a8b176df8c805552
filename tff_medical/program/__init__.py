"""The program that trains: draw, charge, run, save, publish, round by round."""

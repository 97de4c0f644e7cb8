"""Training: the step, its optimizer, the loop around it and its log.

May import weights and what weights may import.
"""

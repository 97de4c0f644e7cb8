"""Report: what a run showed, as tables, pictures and pages.

May import studies and what studies may import.
"""

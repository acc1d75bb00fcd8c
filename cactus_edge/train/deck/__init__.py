"""Decks: several networks, cards, that ship as one integer graph, with the gate that chooses among them in it.

`gate` is the choice by spectra, `join` the graph, `cards` the training.
Source: Diffenderfer et al. 2021, arXiv 2106.09129, section 4.
"""

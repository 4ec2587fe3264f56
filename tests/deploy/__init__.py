"""The files in deploy/, run by the programs that they are written for. Parts that tests share are modules of this package."""

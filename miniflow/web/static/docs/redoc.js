"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)").matches;
const fonts = {
  fontFamily: "system-ui, sans-serif",
  headings: { fontFamily: "system-ui, sans-serif" },
  code: { fontFamily: "ui-monospace, monospace" },
};

document.documentElement.classList.toggle("dark-mode", dark);

Redoc.init(
  "openapi.json",
  {
    nativeScrollbars: true,
    theme: dark
      ? {
          colors: {
            primary: { main: "#7ab7ff" },
            success: { main: "#5fd38d" },
            error: { main: "#ff8a80" },
            text: { primary: "#e4e6e6", secondary: "#b7bcbf" },
            border: { dark: "#4a5055", light: "#353b40" },
            gray: { 50: "#24292d", 100: "#2c3236" },
            responses: { error: { tabTextColor: "#ff8a80" }, success: { tabTextColor: "#5fd38d" } },
          },
          schema: { nestedBackground: "#24292d", typeNameColor: "#b7bcbf", typeTitleColor: "#b7bcbf" },
          sidebar: { backgroundColor: "#171a1c", textColor: "#e4e6e6" },
          rightPanel: { backgroundColor: "#121415" },
          typography: { ...fonts, code: { ...fonts.code, color: "#ffab91", backgroundColor: "#2c3236" } },
        }
      : { typography: fonts },
  },
  document.getElementById("page"),
);

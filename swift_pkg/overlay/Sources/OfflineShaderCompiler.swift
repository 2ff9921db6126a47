import Foundation
@preconcurrency import Metal

/// `xcrun metal` and `xcrun metallib`: no shell, output into a file, a time limit.
struct OfflineShaderCompiler {
  static let minimumOS = "15.0"
  let xcrun: URL
  let timeLimit: TimeInterval

  struct Failure: Error, CustomStringConvertible {
    let description: String
  }

  /// Where `xcrun` is, if developer tools are installed.
  ///
  /// Without them the program exists too, but asks the user to install something: a dialog that an
  /// attention call must not open.
  static func installed() -> URL? {
    let manager = FileManager.default
    let signs = ["/var/db/xcode_select_link", "/Applications/Xcode.app"]
    let chosen = ProcessInfo.processInfo.environment["DEVELOPER_DIR"] != nil
    guard chosen || signs.contains(where: manager.fileExists(atPath:)) else { return nil }
    let xcrun = URL(fileURLWithPath: "/usr/bin/xcrun")
    return manager.isExecutableFile(atPath: xcrun.path) ? xcrun : nil
  }

  /// Compile `text` into `folder` and return the library and what the compiler calls itself.
  func compile(_ text: ShaderText, options: MTLCompileOptions, in folder: URL) throws
    -> (library: URL, compiler: String)
  {
    let source = folder.appendingPathComponent("shader.metal")
    let object = folder.appendingPathComponent("shader.air")
    let library = folder.appendingPathComponent("shader.metallib")
    try Data(text.source.utf8).write(to: source)
    let compiler = try run(["metal", "--version"], in: folder)
    _ = try run(
      ["metal"] + Self.flags(options) + ["-c", source.path, "-o", object.path], in: folder)
    _ = try run(["metallib", object.path, "-o", library.path], in: folder)
    guard FileManager.default.fileExists(atPath: library.path) else {
      throw Failure(description: "metallib wrote no library")
    }
    return (library, compiler.split(separator: "\n").first.map(String.init) ?? "unknown")
  }

  /// Flags that say to the offline compiler what `options` say to the run-time one.
  static func flags(_ options: MTLCompileOptions) -> [String] {
    var flags = ["-mmacosx-version-min=\(minimumOS)"]
    // "metal3.2"; the form with "macos-" before it ended with 2.4.
    flags.append("-std=metal\(ShaderText.language(options))")
    flags.append("-fmetal-math-mode=\(ShaderText.math(options))")
    flags.append("-fmetal-math-fp32-functions=\(ShaderText.functions(options))")
    if options.preserveInvariance { flags.append("-fpreserve-invariance") }
    if options.optimizationLevel == .size { flags.append("-Os") }
    flags += (options.preprocessorMacros ?? [:]).map { "-D\($0.key)=\($0.value)" }.sorted()
    return flags
  }

  /// Run one tool and return the end of what it printed.
  private func run(_ arguments: [String], in folder: URL) throws -> String {
    let output = folder.appendingPathComponent("output-\(UUID().uuidString).txt")
    // A file, not a pipe: a child that prints more than a pipe holds would wait for us for ever.
    guard FileManager.default.createFile(atPath: output.path, contents: nil) else {
      throw Failure(description: "\(output.path) cannot be written")
    }
    let sink = try FileHandle(forWritingTo: output)
    defer { try? sink.close() }
    let child = Process()
    child.executableURL = xcrun
    child.arguments = ["-sdk", "macosx"] + arguments
    child.standardInput = FileHandle.nullDevice
    child.standardOutput = sink
    child.standardError = sink
    let ended = DispatchSemaphore(value: 0)
    child.terminationHandler = { _ in ended.signal() }
    try child.run()
    if ended.wait(timeout: .now() + timeLimit) == .timedOut {
      kill(child.processIdentifier, SIGKILL)
      ended.wait()
      throw Failure(description: "xcrun \(arguments[0]) ran longer than \(timeLimit) s")
    }
    let printed = Self.tail(of: output)
    guard child.terminationReason == .exit, child.terminationStatus == 0 else {
      throw Failure(description: "xcrun \(arguments[0]) failed: \(printed)")
    }
    return printed
  }

  private static func tail(of file: URL) -> String {
    let kept = 4096
    guard let content = try? Data(contentsOf: file, options: .mappedIfSafe) else { return "" }
    return String(decoding: content.suffix(kept), as: UTF8.self)
      .trimmingCharacters(in: .whitespacesAndNewlines)
  }
}

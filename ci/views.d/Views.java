/** Prints how many processors a JVM has, or up to which size its heap grows. */
public class Views {
    public static void main(String[] arguments) {
        Runtime runtime = Runtime.getRuntime();
        System.out.println(arguments[0].equals("cpus") ? runtime.availableProcessors() : runtime.maxMemory());
    }
}
